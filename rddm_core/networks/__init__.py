"""The networks of RDDM defocus deblurring; `model.RDDM` holds them together."""
