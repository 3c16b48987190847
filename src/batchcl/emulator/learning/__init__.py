"""Trains models on labelled images, evaluates them, and detects labels in images.

Models for image-level labels and for object location are small linear models over histograms of oriented gradients
(Dalal and Triggs, 2005) and colours. Training takes seconds on one processor.
"""
