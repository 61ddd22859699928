"""What the bytes say: messages, payloads, addresses, errors and the response-stream machine. No I/O, no asyncio."""
