"""Does a ranking foresee training? Rank, train at some sites, compare."""
