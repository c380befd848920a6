"""What process and integration tests share: servers, clients, and questions about what they left behind."""
