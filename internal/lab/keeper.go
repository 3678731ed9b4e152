package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Keep starts a group of hosts on one network, calls ready, and holds them
// until the context ends or no host is left. The options apply to each host,
// but for Number, Network, Dir and Shared. If sharedDisk is not 0, all hosts have one more
// disk of that many bytes, which is empty, and gone when they are.
func Keep(ctx context.Context, name string, hosts int, o Options, sharedDisk int64, ready func(Group)) error {
	if err := checkGroupName(name); err != nil {
		return err
	}
	if hosts < 1 || hosts > MaxHosts {
		return fmt.Errorf("lab of %d hosts: want 1 to %d", hosts, MaxHosts)
	}
	if err := o.setDefaults(); err != nil {
		return err
	}
	state, err := stateDir()
	if err != nil {
		return err
	}
	lock, err := openLock(state, name)
	if err != nil {
		return err
	}
	// Last of all, when everything else is gone.
	defer lock.close()
	if free, err := lock.take(); err != nil || !free {
		return errors.Join(err, fmt.Errorf("lab %s is up already: `godwit-lab down --name %s` ends it", name, name))
	}
	if err := lock.writePID(); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	k := &keeper{dir: filepath.Join(state, name), group: Group{Name: name, PID: os.Getpid(), Started: time.Now()}}
	// What a keeper that was killed has left.
	if err := os.RemoveAll(k.dir); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	defer os.RemoveAll(k.dir)
	defer k.end()
	if sharedDisk > 0 {
		path, err := k.makeDisk(sharedDisk)
		if err != nil {
			return fmt.Errorf("lab %s: shared disk: %w", name, err)
		}
		o.Disks = append(o.Disks, path)
	}
	if err := k.start(ctx, hosts, o); err != nil {
		return err
	}
	ready(k.group)
	k.wait(ctx)
	return nil
}

// keeper holds the hosts of a group.
type keeper struct {
	dir   string
	group Group
	mu    sync.Mutex
	hosts []*Host
}

// makeDisk makes a sparse file for a disk.
func (k *keeper) makeDisk(size int64) (path string, err error) {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(k.dir, "shared.img"))
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Truncate(size), f.Close())
}

// start starts all hosts at once.
func (k *keeper) start(ctx context.Context, hosts int, o Options) error {
	o.Network, o.Shared = NewNetwork(), true
	errs := make([]error, hosts)
	var all sync.WaitGroup
	for i := range hosts {
		o := o
		o.Number = i + 1
		o.Dir = filepath.Join(k.dir, HostName(o.Number))
		k.group.Hosts = append(k.group.Hosts, HostInfo{
			Name:      HostName(o.Number),
			Address:   Address(o.Number).Addr().String(),
			CPUs:      o.CPUs,
			MemoryMiB: o.MemoryMiB,
			Dir:       o.Dir,
		})
		all.Go(func() { errs[i] = k.startHost(ctx, o) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return k.write()
}

func (k *keeper) startHost(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	h, err := Start(ctx, o)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hosts = append(k.hosts, h)
	return nil
}

// write makes the group known to other processes.
func (k *keeper) write() error {
	text, err := json.MarshalIndent(k.group, "", "\t")
	if err != nil {
		return err
	}
	temp := filepath.Join(k.dir, groupFile+".new")
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(k.dir, groupFile))
}

// wait waits for the end of the context or of the last host.
func (k *keeper) wait(ctx context.Context) {
	for _, h := range k.hosts {
		select {
		case <-h.Done():
		case <-ctx.Done():
			return
		}
	}
}

func (k *keeper) end() {
	for _, h := range k.hosts {
		h.Close()
	}
}
