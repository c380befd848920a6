"""The dashboards as a program: one module per dashboard, and what they share."""
