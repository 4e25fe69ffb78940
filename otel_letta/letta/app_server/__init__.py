"""Letta's App Server: WebSocket, its OpenAI-compatible API, and the memory that is files."""
