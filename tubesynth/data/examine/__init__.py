"""What is wrong with a data set: facts of every case, then rules over them."""
