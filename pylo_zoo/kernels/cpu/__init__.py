def find():
    return "not yet."
