"""Site tables: what was trained, whether it may judge scores, how scores fared, and what searching with them costs."""
