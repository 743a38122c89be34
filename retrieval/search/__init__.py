"""The parts of a search: candidates and their order, filters, neighbours, reranking."""
