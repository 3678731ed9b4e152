package memory

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Two processes of one host hand a guest over without a copy of its memory: the one
// passes the memfd (Share), and the other maps it (Options.Passed).
//
// The first one may take its guest back until the very last moment. So what the other
// process writes before that goes to pages of its own: the processors' state that it
// loads as a rehearsal, for instance, has KVM write to the guest's memory. Adopt is that
// moment.

// Share is a descriptor of the memory for another process, which the caller closes; nil
// for memory that cannot be passed: a private mapping of a snapshot, or memory that
// another one than the kernel brings.
func (g *Guest) Share() (*os.File, error) {
	if g.private || g.Pager() != NoPager {
		return nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(g.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("share guest memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "guest memory"), nil
}

// newPassed maps the memory of another process's guest, of which it keeps a descriptor.
func newPassed(o Options, ranges []Range) (*Guest, error) {
	if err := checkPassed(o); err != nil {
		return nil, fmt.Errorf("guest memory that was passed: %w", err)
	}
	fd, err := unix.FcntlInt(o.Passed.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("guest memory that was passed: %w", err)
	}
	g := unmapped(o, fd)
	// As it is to be in the end: what cannot be mapped so fails now.
	err = g.mapRegions(ranges, o.HugePages)
	g.private, g.passed = true, true
	if err == nil {
		err = g.Renew()
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// checkPassed checks that a file is what New would have made: of another size, or where it
// could shrink, an access would be a SIGBUS.
func checkPassed(o Options) error {
	fd := o.Passed.Fd()
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return err
	}
	if uint64(st.Size) != o.Size {
		return fmt.Errorf("it has %d bytes, want %d", st.Size, o.Size)
	}
	seals, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("it is no memfd: %w", err)
	}
	const unwritable = unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE
	if seals&unix.F_SEAL_SHRINK == 0 || seals&unwritable != 0 {
		return fmt.Errorf("it has seals %#x, want one against shrinking and none against writing", seals)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(fd), &fs); err != nil {
		return err
	}
	if huge := fs.Type == unix.HUGETLBFS_MAGIC && fs.Bsize == hugePageSize; huge != o.HugePages {
		return fmt.Errorf("its pages have %d bytes, and the guest's huge pages are %v", fs.Bsize, o.HugePages)
	}
	return nil
}

// Renew forgets what this process, or KVM on its behalf, has written to memory that was
// passed, and shows what the other process has by now. Before Adopt it is the only user of
// the memory that the caller has to care for: nobody else may use it meanwhile.
func (g *Guest) Renew() error {
	if !g.passed {
		return nil
	}
	return g.remap(unix.MAP_PRIVATE | unix.MAP_NORESERVE)
}

// Adopt makes memory that was passed this process's own: from now on what is written is
// the guest's memory. The process that passed it must not use it any more. Nobody uses it
// meanwhile; a second call does nothing.
func (g *Guest) Adopt() error {
	if !g.passed {
		return nil
	}
	flags := unix.MAP_SHARED
	if g.hostPageSize == PageSize {
		flags |= unix.MAP_NORESERVE // as in mapRegions
	}
	if err := g.remap(flags); err != nil {
		return err
	}
	g.private, g.passed = false, false
	return nil
}

// remap replaces the mappings, in place: KVM knows where they are.
func (g *Guest) remap(flags int) error {
	for _, r := range g.regions {
		if err := mapFixed(r.Mem, g.fd, r.Offset, flags); err != nil {
			return fmt.Errorf("map %d MiB of guest memory that was passed: %w", r.Size>>20, err)
		}
		g.advise(r.Mem)
	}
	return nil
}
