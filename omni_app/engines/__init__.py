"""The engines that can answer, and the choice among them."""
