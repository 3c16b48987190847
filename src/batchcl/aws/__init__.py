"""The only room that speaks to AWS: sessions, the detection call, the model's lifecycle."""
