"""One model's question: cases, cells, results."""
