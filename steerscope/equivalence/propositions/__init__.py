"""The theory as executable propositions, P1 to P46, each with a claim and a check that can fail.

Which file holds a proposition: its number stands in the file's name, with two digits. P8 is in
``p07_08_11_column_space.py``, P23 in ``p23_propagation.py``; no number stands in two names.

The other files hold no proposition:

* ``base``: what a proposition is, its evidence and its verdict;
* ``catalogue``: all of them by number, the choice of some, trying them on a subject;
* ``subject``: what they are tried on; ``parts`` and ``runs``: the tensors of one block, and runs of the whole model
  with edits or other weights;
* ``mlp_expansion``: the closed forms of an MLP for whichever layout it has, shared by P1 to P11.

Formulas that steering uses as well are not here but beside this folder, in ``oracles``, ``divergence`` and
``subspaces``.
"""
