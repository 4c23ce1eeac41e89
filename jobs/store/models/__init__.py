"""Which models there are: chosen by operators, held by workers, and the cards of those that have left."""
