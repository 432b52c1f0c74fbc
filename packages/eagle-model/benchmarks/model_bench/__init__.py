"""What is wanted of eagle-model's measured figures and how they are shown; `prefill.py` beside it measures."""
