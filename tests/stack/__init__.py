"""Tests of everything around the package: Collector, Prometheus, Jaeger, dashboards, alerts, compose."""
