"""The experiment on one machine without a GPU: do experts beat the foundation that they come from, at a third of it?"""
