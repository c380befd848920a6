"""The catalogues of real, public servers, live: what we measure is what is on the wire, to the byte."""
