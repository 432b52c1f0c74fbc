"""Video containers, inside: indexes made from container tables, plans of what to decode, and the decoding itself.

Public through `eagle_data.video`; nothing here needs torch, and PyAV is imported only when frames are decoded or scanned.
"""
