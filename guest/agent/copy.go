package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// CopyOptions say how files and folders are copied. The zero value is what cp(1)
// with -r does.
type CopyOptions struct {
	// Follow follows a symbolic link that is the source itself. Those inside
	// a folder are always copied as links.
	Follow bool
	// Owners keeps the numbers of users and groups; for the host that takes
	// root.
	Owners bool
	// Progress, if set, is called again and again.
	Progress func(Copied)
}

// Upload copies a file, symbolic link or folder of this machine to the guest,
// with permissions and times. If dst is a folder it is copied into that, and
// else under that name. If src ends in "/." the contents of a folder are meant.
func (c *Client) Upload(ctx context.Context, src, dst string, o CopyOptions) (Copied, error) {
	s, err := c.open(request{Op: opPutTree, Path: dst, Owners: o.Owners})
	if err != nil {
		return Copied{}, fmt.Errorf("copy %s: %w", src, err)
	}
	stop := context.AfterFunc(ctx, func() { c.abandon(s) })
	defer stop()
	copied, err := sendTree(streamWriter{s.channel, stdin}, src, o.Follow, o.Progress)
	if err == nil {
		err = s.finish(stdin)
	} else {
		c.abandon(s)
	}
	<-s.done
	// When the guest does not go on, it says why.
	if errors.Is(err, io.ErrClosedPipe) || err == nil {
		err = s.failure()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return copied, fmt.Errorf("copy %s: %w", src, err)
	}
	return copied, nil
}

// Download copies a file, symbolic link or folder of the guest to this machine,
// as Upload does. The guest is not trusted: nothing is written outside of dst,
// and no file gets a special permission.
func (c *Client) Download(ctx context.Context, src, dst string, o CopyOptions) (Copied, error) {
	s, err := c.open(request{Op: opGetTree, Path: src, Follow: o.Follow}, stdout, stderr)
	if err != nil {
		return Copied{}, fmt.Errorf("copy %s: %w", src, err)
	}
	stop := context.AfterFunc(ctx, func() { c.abandon(s) })
	defer stop()
	copied, err := receiveTree(s.in[stdout], dst, receiveOptions{owners: o.Owners, progress: o.Progress})
	if err == nil {
		err = atEnd(s.in[stdout])
	}
	s.in[stdout].discard()
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		c.abandon(s)
	}
	<-s.done
	// A stream that ends too early is for a reason that the guest knows.
	if failure := s.failure(); failure != nil && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = failure
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	copied.Skipped += s.result.Copied.Skipped
	if err != nil {
		return copied, fmt.Errorf("copy %s: %w", src, err)
	}
	return copied, nil
}

// atEnd checks that a stream is at its end.
func atEnd(r io.Reader) error {
	if n, err := io.ReadFull(r, make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more comes behind the last file", ErrCorrupt)
	}
	return nil
}

// SetTime sets the guest's clock.
func (c *Client) SetTime(ctx context.Context, t time.Time) error {
	if err := c.simple(ctx, request{Op: opSetTime, Time: t.UnixNano()}); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	return nil
}
