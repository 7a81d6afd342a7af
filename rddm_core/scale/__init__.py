"""Deblurring many pictures: in this process, or on Ray, with a record of what is done."""
