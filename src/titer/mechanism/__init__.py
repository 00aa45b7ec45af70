"""Why a defence holds, or does not: what changed in the weights, what every layer still says, knows and separates."""
