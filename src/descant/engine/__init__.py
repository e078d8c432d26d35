"""Engines: plain synchronous batch code over tensors. No asyncio here, and no threads of text."""
