package flow

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gopkg.in/natefinch/lumberjack.v2"
)

// OpenFile opens a flow log file for appending, with mode 0600 if it is new: it
// tells who talks to whom. Before it would exceed maxMiB it is renamed, with the
// time in its name, and a new one begun; maxBackups old ones are kept. Lines are
// never split between files. Nothing else may rotate the file.
func OpenFile(path string, maxMiB, maxBackups int) (io.WriteCloser, error) {
	switch {
	case maxMiB < 1:
		return nil, fmt.Errorf("open flow log %s: a size of %d MiB: want 1 or more", path, maxMiB)
	case maxBackups < 1:
		return nil, fmt.Errorf("open flow log %s: %d backups: want 1 or more", path, maxBackups)
	}
	// The library opens the file with the first line; what is wrong with it is to
	// be known at the start.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open flow log: %w (make the directory %s first)", err, filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("open flow log: %w", err)
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("open flow log: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open flow log %s: it is no regular file and cannot be rotated (standard output is -)", path)
	}
	return &lumberjack.Logger{Filename: path, MaxSize: maxMiB, MaxBackups: maxBackups}, nil
}
