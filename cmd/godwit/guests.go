package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/rundir"
)

// requestTimeout bounds how long a guest's VMM may take to answer a request that
// is quick.
const requestTimeout = 10 * time.Second

// openGuest finds a guest that runs. The error says what to do next.
func openGuest(name string) (*rundir.VM, *client.Client, error) {
	vm, err := rundir.Open(name)
	if errors.Is(err, rundir.ErrNotRunning) {
		return nil, nil, fmt.Errorf("guest %s is not running: godwit ps lists those that are", name)
	}
	if err != nil {
		return nil, nil, err
	}
	return vm, client.New(vm.Path(rundir.APIFile)), nil
}

// eachGuest does the same to several guests at once. What went wrong is in the
// order of their names.
func eachGuest(names []string, do func(name string) error) error {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = do(name) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// askGuest sends a request to a guest that runs.
func askGuest(ctx context.Context, name string, ask func(context.Context, *client.Client) error) error {
	vm, c, err := openGuest(name)
	if err != nil {
		return err
	}
	defer vm.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return explain(name, ask(ctx, c))
}

// explain says what to do about a request that failed.
func explain(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, client.ErrNobody):
		return fmt.Errorf("guest %s: %w: it is just starting or ending; try again", name, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("guest %s did not answer within %v: to end it: godwit kill %s", name, requestTimeout, name)
	}
	return fmt.Errorf("guest %s: %w", name, err)
}
