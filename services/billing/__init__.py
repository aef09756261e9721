"""The owner of `account` streams: reserves, meters and captures what jobs cost, in balanced postings."""
