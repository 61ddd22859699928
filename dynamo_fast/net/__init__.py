"""How bytes get in and out: addresses, sockets and listeners, for both ends."""
