"""One operator a file: the public function, which checks its arguments, and beside it the naive twin that is its truth."""
