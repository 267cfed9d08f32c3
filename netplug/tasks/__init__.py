"""asyncio tasks: locks by name, and work that a cancellation must not cut in half. Knows nothing of networks."""
