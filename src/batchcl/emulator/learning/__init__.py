"""What a model version learns from labelled images, and what it then sees in new ones.

Image-level models and object-location models are small linear machines over histograms of oriented gradients
(Dalal and Triggs, 2005) and colours. They learn within seconds on one processor, and they really look at the pixels.
"""
