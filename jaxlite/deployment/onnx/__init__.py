"""An ONNX file, written from a list of operations: floats, or integers in QDQ form."""
