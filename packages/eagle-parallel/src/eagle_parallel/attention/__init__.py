"""Attention over ranks: Ulysses, gathering of keys and values, and ring; `compose` joins them."""
