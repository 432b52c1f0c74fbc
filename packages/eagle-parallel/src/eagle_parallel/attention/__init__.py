"""Attention over ranks: Ulysses, gathering of keys and values, and ring; `eagle_parallel.cp_attention` composes them."""
