"""Side-by-side measurement of Ferrule and its peers, and perplexity by weight format."""
