"""The proof without a container engine: real programs, real traffic, every query asked.

`python -m tests.stack.lane` builds the Collector from `collector/builder.yaml`, Prometheus 3 and
Jaeger v2 from Go modules (once; about 15 minutes on two cores), starts them on loopback with the
commands and configurations of `docker-compose.yml`, sends the demo's traffic through, and asks.
"""
