"""When the documents do not say: a floor found on questions that are made from the documents."""
