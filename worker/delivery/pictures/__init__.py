"""What a job leaves behind: pictures, frames and arrays, made from the tensors of the engine."""
