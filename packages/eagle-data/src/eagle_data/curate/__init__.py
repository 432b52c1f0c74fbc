"""Eagle-Video-110K as a pipeline for your own videos: clips, the diversity rule, captions and questions, training samples.

`pipeline.curate` runs all of it, `recipe.CurateRecipe` says how; the other modules are its steps, each usable alone.
Importing this package imports nothing else. Not for training: what comes out is annotations that `eagle-data prepare` takes.
"""
