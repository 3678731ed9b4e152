package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Between two processes of one host open files go with the offer, over its unix socket
// (SCM_RIGHTS, unix(7)): the guest's memory, which then is not copied, and what else would
// have to be opened again. All the rest is as between two hosts. Where the files do not
// arrive, because what looks like a unix socket is a tunnel, memory is copied.

// OfferedFile is an open file of the source's.
type OfferedFile struct {
	// Name tells the destination's Incoming what it is.
	Name string `json:"name"`
	// File is the caller's: of the source until Migrate returns, of the destination until
	// Prepare does.
	File *os.File `json:"-"`
}

const (
	// MaxFiles is the largest number of files; the kernel allows 253 (SCM_MAX_FD).
	MaxFiles = 250
	// maxFileName bounds their names, in bytes.
	maxFileName = 64
)

func checkFiles(files []OfferedFile) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("%d files come with the offer: want at most %d", len(files), MaxFiles)
	}
	for _, f := range files {
		if len(f.Name) > maxFileName {
			return fmt.Errorf("a file with a name of %d bytes comes with the offer: want at most %d", len(f.Name), maxFileName)
		}
	}
	return nil
}

// sendOffer sends the offer, with its files where that can be.
func (c *control) sendOffer(o Offer) error {
	conn, local := c.conn.(*net.UnixConn)
	if !local || len(o.Files) == 0 {
		// TLS is for peers that are not on this host.
		o.Files, o.SharesMemory = nil, false
		return c.sendJSON(frameOffer, o)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return c.sendBy(frameOffer, text, func(frame []byte) (int, error) {
		// With the first byte: a message may be taken in parts, its files are not.
		if err := sendFiles(conn, frame[:1], o.Files); err != nil {
			return 0, fmt.Errorf("pass %d files: %w", len(o.Files), err)
		}
		return conn.Write(frame[1:])
	})
}

// sendFiles passes files with a byte.
func sendFiles(conn *net.UnixConn, with []byte, files []OfferedFile) error {
	var fds []int
	for _, f := range files {
		// os.File.Fd would make it blocking, for all who have it.
		raw, err := f.File.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	_, _, err := conn.WriteMsgUnix(with, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	return err
}

// fileConn is a connection that keeps the files that come with its first bytes. Those of
// one that is not a unix socket of this user's, or the administrator's, never come.
type fileConn struct {
	*net.UnixConn
	plain net.Conn
	peer  int
	oob   []byte

	mu    sync.Mutex
	files []*os.File
	done  bool
}

// takeFiles makes a connection one that takes files.
func takeFiles(conn net.Conn) *fileConn {
	c := &fileConn{plain: conn}
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return c
	}
	if peer, ok := peerOf(local); ok {
		c.UnixConn, c.peer, c.oob = local, peer, make([]byte, unix.CmsgSpace(4*MaxFiles))
	}
	return c
}

// peerOf is the process at the other end, 0 if it is not seen from here, and whether it is
// this user's or the administrator's.
func peerOf(conn *net.UnixConn) (pid int, ok bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	var peer *unix.Ucred
	controlled := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if controlled != nil || err != nil || peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return 0, false
	}
	return int(peer.Pid), true
}

// conn is what is to be read from.
func (c *fileConn) conn() net.Conn {
	if c.UnixConn == nil {
		return c.plain
	}
	return c
}

// Read is that of net.Conn.
func (c *fileConn) Read(p []byte) (int, error) {
	n, k, _, _, err := c.ReadMsgUnix(p, c.oob)
	if k > 0 {
		c.keep(c.oob[:k])
	}
	return max(n, 0), err // with an error it is -1
}

// keep keeps files that came, if they came in time, and closes others.
func (c *fileConn) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if c.done || len(c.files) == MaxFiles {
				_ = unix.Close(fd)
				continue
			}
			c.files = append(c.files, os.NewFile(uintptr(fd), "file of an offer"))
		}
	}
}

// give gives an offer its files, if all of them came: what a tunnel has left is of no use.
func (c *fileConn) give(o *Offer) {
	o.Peer = c.peer
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	if len(c.files) != len(o.Files) {
		o.Files, o.SharesMemory = nil, false
		return
	}
	for i, f := range c.files {
		o.Files[i].File = f
	}
	o.SharesMemory = o.SharesMemory && len(c.files) > 0
}

// close closes the files.
func (c *fileConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	for _, f := range c.files {
		_ = f.Close()
	}
	c.files = nil
}

// connections is how many there are for memory.
func (d *destination) connections() int {
	if d.offer.SharesMemory {
		return 0
	}
	return d.offer.Connections
}

// pass is copy for a destination that has the guest's memory already: what remains are
// disks that move, and the state.
func (s *source) pass(ctx context.Context) error {
	ctx, end := s.mirrors.start(ctx)
	defer end()
	if err := s.copyDisks(ctx); err != nil {
		return orCause(ctx, err)
	}
	s.report.Shared = s.guest.Memory().Size()
	return orCause(ctx, s.last(ctx, nil, func() error { return s.finishMemory(ctx) }))
}
