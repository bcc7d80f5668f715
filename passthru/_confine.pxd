# What confines this process: what each thread does for itself.
cdef void confine_thread() noexcept nogil
