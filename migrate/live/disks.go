package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// A disk that moves with its guest is copied first, while the guest runs; then what the
// guest wrote meanwhile, in rounds, which go on beside those of memory; and the last
// blocks when the guest stands still. The destination has all of it, durably, before it
// is sent the state, and so before READY. The source only ever reads its disk.

// Disk is one that moves with its guest. Any goroutine may call its methods.
type Disk interface {
	// ReadAt reads what the guest would read.
	io.ReaderAt
	// Capacity is the size in bytes, a multiple of stream.SectorSize.
	Capacity() uint64
	// NextData finds the first range from offset on that may hold something else than
	// zeros; both ends are the capacity if there is none.
	NextData(offset uint64) (start, end uint64, err error)
	// StartLog has writes noted from now on. FetchDirty sets the bits of the granules,
	// of DiskGranule bytes, in which something was written that was complete, and not
	// fetched, at its call. When the guest is paused it has all.
	StartLog()
	FetchDirty(dst []uint64)
	StopLog()
}

// DiskGranule is what one bit of FetchDirty is about, in bytes.
const DiskGranule = 64 << 10

// MaxDisks is the largest number of disks that move with a guest.
const MaxDisks = 64

const (
	// restSize is how much may be left of a disk when memory is begun with, and
	// settleRounds after how many rounds it is, however much is left.
	restSize     = 16 << 20
	settleRounds = 12
	// roundPause is between two rounds that had little to do: a block that the guest
	// writes again and again is not sent each time.
	roundPause = 100 * time.Millisecond
)

// OfferedDisk is a disk that comes with its guest.
type OfferedDisk struct {
	// Size in bytes, of which about Data are not in holes.
	Size uint64 `json:"size"`
	Data uint64 `json:"data"`
}

// offerDisks describes disks.
func offerDisks(disks []Disk) ([]OfferedDisk, error) {
	var offered []OfferedDisk
	for _, d := range disks {
		o := OfferedDisk{Size: d.Capacity()}
		for at := uint64(0); at < o.Size; {
			start, end, err := d.NextData(at)
			if err != nil {
				return nil, err
			}
			o.Data, at = o.Data+end-start, end
		}
		offered = append(offered, o)
	}
	return offered, nil
}

// checkDisks bounds what an offer says.
func checkDisks(disks []OfferedDisk) error {
	if len(disks) > MaxDisks {
		return fmt.Errorf("%d disks that come with the guest: want at most %d", len(disks), MaxDisks)
	}
	for i, d := range disks {
		if d.Size == 0 || d.Size > stream.MaxDisk || d.Size%stream.SectorSize != 0 || d.Data > d.Size {
			return fmt.Errorf("disk %d that comes with the guest has %d bytes, %d of them data: want a multiple of %d, at most %d", i, d.Size, d.Data, stream.SectorSize, uint64(stream.MaxDisk))
		}
	}
	return nil
}

// mirrors are the disks on their way. The zero value has none.
type mirrors struct {
	list []*mirror
	// paused is closed when the guest stands still.
	paused chan struct{}
	pause  sync.Once
	work   sync.WaitGroup
}

// errCopied ends the copying of disks when all is done, or nothing more is wanted.
var errCopied = errors.New("the copying of disks has ended")

// add has a disk copied over a connection, which is the mirrors' from now on. leftover
// says that the destination may have parts of it.
func (ms *mirrors) add(d Disk, o OfferedDisk, conn *stream.DiskSender, leftover bool) {
	m := &mirror{
		disk: d, size: o.Size, sender: conn, leftover: leftover,
		dirty: make([]uint64, (o.Size+64*DiskGranule-1)/(64*DiskGranule)),
		round: make(chan struct{}, 1), settled: make(chan struct{}), finished: make(chan struct{}),
	}
	m.todo.Store(o.Data)
	ms.list = append(ms.list, m)
}

// start begins with the copying. The context that it returns ends when that fails; end
// ends the copying, and the logs, and is to be called.
func (ms *mirrors) start(ctx context.Context) (copying context.Context, end func()) {
	copying, cancel := context.WithCancelCause(ctx)
	ms.paused = make(chan struct{})
	for _, m := range ms.list {
		ms.work.Go(func() {
			defer context.AfterFunc(copying, func() { _ = m.sender.Close() })()
			if err := m.run(copying, ms.paused); err != nil {
				cancel(fmt.Errorf("copy a disk: %w", err))
			}
		})
	}
	return copying, func() {
		cancel(errCopied)
		ms.work.Wait()
		for _, m := range ms.list {
			m.disk.StopLog()
		}
	}
}

// close closes the connections.
func (ms *mirrors) close() {
	for _, m := range ms.list {
		_ = m.sender.Close()
	}
}

// settle returns when so little is left of the disks that memory may be begun with. It
// calls tick all the while.
func (ms *mirrors) settle(ctx context.Context, tick func()) error {
	t := time.NewTicker(progressTime)
	defer t.Stop()
	for _, m := range ms.list {
		for settled := false; !settled; {
			select {
			case <-m.settled:
				settled = true
			case <-t.C:
				tick()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return ctx.Err()
}

// catchUp waits for the end of a round of each disk of which something is left.
func (ms *mirrors) catchUp(ctx context.Context) error {
	for _, m := range ms.list {
		if m.left() == 0 {
			continue
		}
		select {
		case <-m.round:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// remaining is how many bytes of the disks are to be sent, as far as is known.
func (ms *mirrors) remaining() uint64 {
	var n uint64
	for _, m := range ms.list {
		m.look()
		n += m.left()
	}
	return n
}

// finishLater has the last blocks sent, for the guest stands still, and returns how many
// bytes there are of them.
func (ms *mirrors) finishLater() uint64 {
	n := ms.remaining()
	ms.pause.Do(func() { close(ms.paused) })
	return n
}

// finish returns when the destination has all of the disks, durably.
func (ms *mirrors) finish(ctx context.Context) error {
	for _, m := range ms.list {
		select {
		case <-m.finished:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// stats says what has been sent.
func (ms *mirrors) stats() (sum stream.DiskStats) {
	for _, m := range ms.list {
		s := m.sender.Stats()
		sum.Data, sum.Zero, sum.Same, sum.Wire = sum.Data+s.Data, sum.Zero+s.Zero, sum.Same+s.Same, sum.Wire+s.Wire
	}
	return sum
}

// progress is how many bytes of the disks' data have been sent, or were there, and how
// many are left.
func (ms *mirrors) progress() (sent, left uint64) {
	for _, m := range ms.list {
		s := m.sender.Stats()
		sent += s.Data + s.Same
		left += m.left()
	}
	return sent, left
}

// connectDisks makes the connections for the disks.
func (s *source) connectDisks(ctx context.Context, a Answer) error {
	for i, d := range s.Disks {
		conn, err := s.dialer.Data(ctx, stream.Disk, i)
		if err != nil {
			return err
		}
		sender := stream.NewDiskSender(conn, stream.SenderOptions{Compress: s.Compress, Limit: s.Limit, Stall: s.Waits.Ready})
		s.mirrors.add(d, s.Offer.Disks[i], sender, i < len(a.Leftover) && a.Leftover[i])
	}
	return nil
}
