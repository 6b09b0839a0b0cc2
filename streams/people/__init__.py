"""What is held about a person: identities that become one, expiry, erasure, what a person is told."""
