"""Fine-tuning: any model, every classic task, better than before and shown so."""
