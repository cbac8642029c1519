"""The request hash in Python, for prompts that are nothing but text."""

import hashlib

from dagster_claude_batch.request.shape import HASH_VERSION, RequestShape


def request_hash(shape: RequestShape, prompt: str) -> str:
    """What `RequestShape.hash_sql` computes."""
    text = f"{shape.digest()}\n{prompt}".encode()
    return f"{HASH_VERSION}:{hashlib.sha256(text).hexdigest()[:32]}"
