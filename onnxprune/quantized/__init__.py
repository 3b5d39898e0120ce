"""Numbers with fewer bits, by ONNX Runtime's own tools: what they need, and what they leave undone.

The tools work from file to file, print, warn, and change names and versions. `working` gives them a model that they
can take, `quiet` keeps them silent, `restored` puts back what is the user's, and `account` says what came out.
"""
