// Package uffd lets this program, or another one, bring the pages of a guest's memory
// when they are first touched: userfaultfd(2), in its mode for missing pages.
//
// An FD is the descriptor. A Mapping is a piece of memory that is registered with it,
// of this process or of another that has sent its descriptor (Connect and Receive,
// as Firecracker does it). A Server brings the pages: it asks a Source for those that
// are faulted on, and takes those that somebody pushes.
//
// Memory is numbered by offset, as memory.Region does it: the memfd's.
//
// # Servers within the process
//
// Whoever touches a missing page waits in the kernel until it is there. For a virtual
// processor in KVM_RUN that is a long system call, which does not disturb anybody.
// For Go code that loads or stores it is not: the scheduler takes the goroutine for
// one that runs, so it keeps its P, and the garbage collector cannot stop the world
// before the access is over. Where it is in the middle of a copy, which cannot be
// preempted, the collector has stopped all others by then, the server among them, and
// nothing ever goes on. So, in a process that serves its own memory:
//
//   - The server, and its Source, never touch the memory that it serves.
//   - All other Go code calls memory.Await for what it is going to touch. It waits
//     in a system call.
//   - What was there does not go missing again: nobody discards pages meanwhile.
//
// System calls that are given such memory as a buffer (read, write, io_uring) may do so
// without that. A server in another process knows none of this.
package uffd
