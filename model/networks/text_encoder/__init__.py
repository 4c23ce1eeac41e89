"""The text encoder of CLIP (`CLIPTextModel`, `CLIPTextModelWithProjection`) and its config."""
