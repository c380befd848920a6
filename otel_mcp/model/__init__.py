"""The records that the layers hand each other. No I/O."""
