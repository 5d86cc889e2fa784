"""Goal spaces: what the networks see of a goal. The state's own numbers, or an encoder's."""
