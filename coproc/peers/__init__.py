"""All-reduce among equal peers: each worker owns a slice of the model, sums and descends it, and all gather the rest.

Jason (Jinquan) Dai et al., "BigDL: A Distributed Deep Learning Framework for Big Data" (SoCC 2019), section 3.3: its
parameter manager. Through files of the tier, a step being two jobs (`blocks`), or through streams between the tasks of
one job (`gang`).
"""
